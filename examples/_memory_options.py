"""The options that experiments on memory share."""

import argparse
from pathlib import Path
from typing import Any

from _networks import NETWORKS, NONLINEARITIES, RANKED
from _options import above_zero, check_ranks, not_negative, output_folder, positive, rank

from geoopt_projunn.init import INITS


def parser(name: str, description: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser of the options that the experiments share."""
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=description)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=["orthogonal"])
    add("--k", nargs="+", type=rank, default=[8], help="ranks of a step, or 'full'")
    add("--iterations", type=not_negative, help="0 draws what the folder holds")
    add("--seeds", nargs="+", type=not_negative, default=[0])
    add("--output", type=output_folder, default=Path("outputs"), help="folder to write to")
    add("--smoke", action="store_true", help="a few seconds, for a test")
    # A run is continued only if these are as they were.
    fixed = [
        add("--hidden", type=positive, help="size of the recurrent matrix"),
        add("--layers", type=positive, help="recurrent layers, each above the last"),
        add("--nonlinearity", choices=NONLINEARITIES, default="modrelu"),
        add("--init", choices=sorted(INITS), default="henaff", help="of the recurrent matrix"),
        add("--batch", type=positive),
        add("--lr", type=float, default=1e-3, help="learning rate of all but the recurrent matrix"),
        add("--recurrent-lr", type=float, default=1e-4, help="learning rate of the recurrent one"),
        add("--angle", type=float, help="in radians, of its steps, in place of its learning rate"),
        # On both tasks these learn sooner than one second moment for the matrix.
        add("--second-moment", choices=("mean", "elementwise"), default="elementwise"),
        add("--momentum", type=float, default=0.0, help="Adam's first beta"),
        add("--smoothing", type=float, default=0.9, help="Adam's second beta"),
        add("--clip", type=above_zero, help="largest norm of a gradient (default: any)"),
        add("--every", type=positive, help="iterations to a row of the history"),
    ]
    parser.set_defaults(
        name=name, fixed=[action.dest for action in fixed], **{"layers": 1, **defaults}
    )
    return parser


def parse(
    parser: argparse.ArgumentParser, arguments: list[str] | None, **smoke: Any
) -> argparse.Namespace:
    """Parse, replace sizes for a smoke run, and check what argparse cannot."""
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(smoke)
    if not set(RANKED).isdisjoint(options.networks):
        check_ranks(parser, options.k, "hidden", options.hidden)
    return options
