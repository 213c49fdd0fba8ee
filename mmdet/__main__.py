"""`python -m mmdet VERB ...`, where the command `mmdet` is not on the path."""

from mmdet.cli.command import run

run()
