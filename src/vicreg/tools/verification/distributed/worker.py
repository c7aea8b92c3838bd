"""One process of a run: ``python -m vicreg.tools.verification.distributed.worker JOB FOLDER``.

The ranks that it holds are those of `torch_ranks` or `jax_ranks`.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import time
from pathlib import Path

from vicreg.tools.functions import FunctionError, error_line
from vicreg.tools.processes import end_with_parent
from vicreg.tools.verification.distributed.job import read_job, write_answer


def main(job_file: Path, folder: Path) -> None:
    """Answer each question of a job, until one fails."""
    end_with_parent()
    job = read_job(job_file)
    with (folder / "where").open("w") as where:
        try:
            module = importlib.import_module(f"{__package__}.{job.backend}_ranks")
            ranks = module.Ranks(job, job_file.with_suffix(".group"))
            own = None if job.target is None else job.target.load()
            ranks.join()
            (folder / "ready.done").touch()
            for number, question in enumerate(job.questions):
                faulthandler.dump_traceback_later(job.seconds, file=where)
                loss = own or ranks.package_loss(question)
                for rank, answer in ranks.answers(loss, question).items():
                    write_answer(folder.parent / str(rank), number, answer)
        except BaseException as error:  # an import may raise anything
            line = str(error) if isinstance(error, FunctionError) else error_line(error)
            report = {"line": line, "time": time.time()}
            (folder / "error.json").write_text(json.dumps(report), encoding="utf-8")
            _leave(1)
        finally:
            faulthandler.cancel_dump_traceback_later()
    _leave(0)


def _leave(status: int) -> None:
    """Exit at once: a group that has failed may wait for its other ranks when it is destroyed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
