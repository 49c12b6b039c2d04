"""An agent host: a configuration file, a process that runs until it is told to stop, and its Unix socket."""
