"""A farm of real DNS servers for the tests: each a child process in its own directory, gone when the test is over."""
