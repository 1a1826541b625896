"""One module per `premoe` subcommand; each defines a click command or group named `command`."""
