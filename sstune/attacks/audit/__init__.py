"""The masking audit: does a network withstand attacks, or does its gradient only mislead them?

Checks D0 to D15, after Athalye et al. 2018 (arXiv 1802.00420), Carlini et al. 2019 (1902.06705), Tramer et
al. 2020 (2002.08347), Croce & Hein 2020 (2003.01690) and Pintor et al. 2021 (Indicators of Attack Failure,
2106.09947). What is judged is the network's own gradient, which an ordinary evaluation would use: the rule's,
where the network has feedback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from sstune.attacks.audit import black_box, gradients, strength, validity
from sstune.attacks.audit.check import Check, Status, Verdict, verdict
from sstune.attacks.audit.evidence import Cell, Evidence
from sstune.attacks.evaluation import drawing_anew
from sstune.attacks.validity import InvalidAttack
from sstune.schema import RequestError

__all__ = ["CHECKS", "Cell", "Check", "Evidence", "Status", "Verdict", "audit", "verdict"]

CHECKS: dict[str, tuple[str, Callable[[Evidence], Check]]] = {
    "D0": ("valid to measure", validity.d0),
    "D1": ("rule and exact gradient attack alike", gradients.d1),
    "D2": ("rule and exact gradient point alike", gradients.d2),
    "D3": ("PGD stronger than FGSM", strength.d3),
    "D4": ("PGD has converged", strength.d4),
    "D5": ("a huge eps leaves nothing", strength.d5),
    "D6": ("accuracy falls with eps", strength.d6),
    "D7": ("white box beats scores (Square)", black_box.d7),
    "D8": ("white box beats transfer", black_box.d8),
    "D9": ("PGD stronger than noise", strength.d9),
    "D10": ("gradients are there", gradients.d10),
    "D11": ("deterministic", validity.d11),
    "D12": ("outputs are logits", validity.d12),
    "D13": ("white box beats labels (RayS)", black_box.d13),
    "D14": ("success not at the last step", strength.d14),
    "D15": ("worst case per sample", strength.d15),
}


def audit(evidence: Evidence, skip: Sequence[str] = ()) -> Iterator[Check]:
    """Each check's answer, in order, as soon as there is one."""
    for name, (title, check) in CHECKS.items():
        if name in skip:
            found = Check(Status.not_run, text="skipped by audit.skip")
        else:
            try:
                with drawing_anew(evidence.victim.device, evidence.seed, name):
                    found = check(evidence)
            except InvalidAttack as error:
                found = Check(Status.error, text=str(error))
            except RequestError as error:  # an attack that is not for such images
                found = Check(Status.not_run, text=str(error))
        yield replace(found, id=name, title=title)
