"""How operators are computed on each kind of device. `ops` says what they compute."""
