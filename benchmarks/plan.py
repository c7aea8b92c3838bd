"""What a batch over ranks costs on paper, as the table of docs/how/ranks.md.

For each number of ranks and of features: the route that is taken, and what both send.
"""

from __future__ import annotations

from vicreg.distributed import plan

ROWS = 64
FEATURES = (2048, 8192, 65_536)
RANKS = (2, 8, 64, 1024)


def row(d: int, ranks: int) -> str:
    taken = plan(ROWS, d, ranks)
    gram, covariance = (taken.cost_of(route) for route in ("gram", "covariance"))
    cells = (
        f"{d:,}",
        f"{ranks:,}",
        f"{ROWS * ranks:,}",
        taken.route,
        f"{gram.bytes_sent / 1e6:,.1f}",
        f"{covariance.bytes_sent / 1e6:,.1f}",
        f"{2 * gram.multiply_adds / 1e9:,.1f}",
        f"{2 * covariance.multiply_adds / 1e9:,.1f}",
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    head = (
        "| d | ranks | samples | route | gram, MB | covariance, MB | gram, GFLOP "
        "| covariance, GFLOP |\n|--:|--:|--:|---|--:|--:|--:|--:|"
    )
    return "\n".join([head, *(row(d, ranks) for d in FEATURES for ranks in RANKS)])


if __name__ == "__main__":
    print(table())
