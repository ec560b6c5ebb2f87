"""No shipped method looks at test labels: one check of `dassl-clip check all`, after short trainings.

The results of all checks are shipped (`results/checks/`), and `test_results.py` compares their hashes with the methods.
"""

from dassl_clip.cli import check
from dassl_clip.engine import catalogue

SHORT = ["OPTIM.MAX_EPOCH", "1", "TRAINER.WISEFT.ALPHAS", "(0.5,)"]
SHORT += [f"TRAINER.{name}.STEPS 2" for name in ("CLIPOOD", "ERM", "FLYP", "MIRO", "SWAD", "WISEFT")]


def test_all_shipped_methods_pass_a_check(capsys):
    code = check.main(["all", "--only", "labels.scoring", *" ".join(SHORT).split()])
    printed = capsys.readouterr().out
    assert code == 0, printed
    rows = {line.split()[0]: line.split()[1:4] for line in printed.splitlines() if line and line[0] != " "}
    assert all(rows[name] == ["1", "0", "0"] for name in catalogue.trainer_names()), printed
