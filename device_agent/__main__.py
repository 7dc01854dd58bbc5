"""`python -m device_agent --config FILE` runs one dispenser."""

import argparse
import sys
from pathlib import Path

from device_agent.runtime import BoardError, ConfigError, OutboxError, run


def main(arguments: list[str] | None = None) -> int:
    """Run; 2 where the configuration is wrong, 1 where board or outbox cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m device_agent", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="TOML file of this machine")
    options = parser.parse_args(arguments)
    try:
        run(options.config)
    except ConfigError as error:
        print(f"device_agent: {error}", file=sys.stderr)
        return 2
    except (BoardError, OutboxError) as error:
        print(f"device_agent: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
