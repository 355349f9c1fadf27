"""python -m iqmjx.tabular: see `iqmjx.theory.tabular`."""

from absl import flags

from iqmjx.commands import cli
from iqmjx.theory import tabular

if __name__ == "__main__":  # as a library it defines no flags
    flags.DEFINE_integer("seed", 0, "Seed of the MDPs and errors.", lower_bound=0)
    flags.DEFINE_string("out", "tabular.png", "Where the figure goes.")
    cli.run(tabular.main)
