"""The only part of Conveyor that speaks to the server.

`keys` names every key, `scripts` loads the Lua, `commands` says what each script is asked and what
it answers, `broker` and `aio` run commands, `connect` makes connections to any kind of server.
"""
