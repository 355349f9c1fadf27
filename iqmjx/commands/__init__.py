"""The commands: command line -> settings -> library -> printed result."""
