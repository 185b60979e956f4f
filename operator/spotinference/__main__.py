"""`python -m spotinference`: the same as the console script."""

from spotinference.cli.app import main

main()
