"""The audit for gradient masking: is a network robust, or does its gradient only mislead attacks?

Its checks follow Athalye et al. 2018 (arXiv 1802.00420), Carlini et al. 2019 (1902.06705), Tramer et al.
2020 (2002.08347), Croce & Hein 2020 (2003.01690) and Pintor et al. 2021 (Indicators of Attack Failure,
2106.09947). They judge the network's own gradient, which an ordinary evaluation would use: the rule's, if the
network has feedback.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from sstune.attacks.audit import black_box, derivatives, gradients, strength, validity
from sstune.attacks.audit.check import CHECK_FUNCTIONS, CheckResult, verdict
from sstune.attacks.audit.evidence import Cell, Evidence
from sstune.attacks.evaluation import seeded_rng
from sstune.attacks.validity import InvalidAttack
from sstune.schema import RequestError
from sstune.schema.audit import CHECKS, SKIPPED, Status

__all__ = [
    "CHECK_FUNCTIONS",
    "Cell",
    "CheckResult",
    "Evidence",
    "audit",
    "black_box",
    "derivatives",
    "gradients",
    "strength",
    "validity",
    "verdict",
]


def audit(evidence: Evidence, skip: Collection[str] = ()) -> Iterator[CheckResult]:
    """Run the checks in order; each result is yielded once it is known."""
    for spec in CHECKS.values():
        if spec.id in skip:
            result = CheckResult(Status.not_run, text=SKIPPED)
        elif not evidence.applies(spec.id):
            result = CheckResult(Status.not_run, text=f"not applicable to task={evidence.profile.task}")
        else:
            try:
                with seeded_rng(evidence.victim.device, evidence.seed, spec.id):
                    result = CHECK_FUNCTIONS[spec.id](evidence)
            except InvalidAttack as error:
                result = CheckResult(Status.error, text=str(error))
            except RequestError as error:  # an attack that does not support such images
                result = CheckResult(Status.not_run, text=str(error))
        yield replace(result, id=spec.id, title=spec.title.format(metric=evidence.victim.task.metric))
