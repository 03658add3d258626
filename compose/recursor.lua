dnstapFrameStreamServer({"/run/cachebus/dnstap.sock"}, {logQueries=true, logResponses=true, reopenInterval=1})
