"""Reading a config and checking it; `UserError`, which becomes one line."""
