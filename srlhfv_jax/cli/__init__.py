"""The command line: `main` finds the command, which reads its flags and calls one function of a room.

    commands     the table of commands
    stage        every stage that trains, by the record of its room
    flags        settings of a command: --config and its overrides
    switches     reading a command's own flags
    config_files config files: named, found, their presets
    help         --help of a command with a config
    define       defining a command's own flags, one a line

Others, a file each: quickstart, data, plan, generate, moderate, serve, evaluate, benchmark, calibrate, certify, dual, report, export,
weights (with patch, units and diagnose), revise, env.
"""
