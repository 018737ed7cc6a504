"""A first configuration, drafted from what runs already: Caddy's configuration and the containers of Engines.

    look        asks everybody: Caddy (`caddy`), the Engines (`machines`, `listening`), and the instances
    handlers    Caddy's configuration -> what can be deployed behind it, and what cannot, and why
    containers  what Engines list -> which container serves an address
    health      how an instance is asked whether it is well
    services    all of that -> the services, with every value decided
    writing     the services -> tables and keys, each with where it comes from
    document    tables and keys -> TOML
    summary     what a person reads on the terminal

All but `look`, and what it is made of, are pure.
"""
