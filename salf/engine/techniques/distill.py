"""Prompt distillation (Askell et al. 2021, arXiv 2112.00861, §2.3; compared with fine-tuning in arXiv 2405.13181).

The student is trained and used on prompts without what all prompts begin with, such as worked examples. The teacher is
the base with whole prompts. Per answer token, the loss is (1 − w)·CE + w·τ²·KL(p_T ‖ p_S), where p = softmax(z/τ) over
the answers' tokens where these are few (label words), or the vocabulary. The teacher's logits are computed once.

The public code of the comparison (github.com/iamvarada/llm_finetuning) distils no prompt: teacher and student read the
same one, the teacher's head is random, and KL is given logits for probabilities. This module follows the definition.
"""

import torch
from torch import Tensor, nn

from salf.engine.answers import answer_states
from salf.engine.batches import Batch, Split
from salf.engine.models.adapter import CausalModel
from salf.engine.models.causal_model import in_eval_mode
from salf.engine.rules import Rule, answer_outputs
from salf.engine.training.loop import READ_TOKENS
from salf.engine.training.step import CrossEntropy, Passes
from salf.engine.training.workbench import Workbench


class Distill(CrossEntropy):
    """Objective ``distill``."""

    def __init__(self, passes: Passes) -> None:
        """Find out which outputs are compared."""
        super().__init__(passes)
        job, self.settings = self.job, self.job.settings.distill
        given = job.training.examples, self.settings.over, job.costs.shape.vocabulary
        self.outputs, _ = answer_outputs(job.rule, *given)

    def __call__(self, part: Batch) -> Tensor:
        """Cross-entropy, and the divergence from the teacher."""
        if self.settings.weight == 0:
            return super().__call__(part)
        assert self.job.taught is not None, "a teacher"
        teacher = self.job.taught[self.job.training.answer_places(part)].to(part.ids.device)  # [M, outputs]
        weight, temperature = self.settings.weight, self.settings.temperature

        def of_rows(logits: Tensor, rows: slice) -> Tensor:
            logits = logits.float()
            loss = nn.functional.cross_entropy(logits, part.targets[rows], reduction="sum")
            student = (logits[:, self.outputs] / temperature).log_softmax(-1)
            known = (teacher[rows] / temperature).log_softmax(-1)
            apart = nn.functional.kl_div(student, known, log_target=True, reduction="sum")
            return (1 - weight) * loss + weight * temperature**2 * apart

        return self.passes(part, of_rows)


@torch.no_grad()
def teacher_logits(model: CausalModel, bench: Workbench, split: Split, rule: Rule) -> Tensor:
    """The base's logits at all answer tokens of examples with whole prompts, [answer tokens, outputs], on the host."""
    over = bench.settings.distill.over
    outputs, width = answer_outputs(rule, split.examples, over, bench.shape.vocabulary)
    chosen = list(bench.processes.share(range(len(split))))
    own, places = split.subset(chosen), split.answer_places(split.batch(chosen))
    found = torch.zeros(sum(len(example.answer_ids) for example in split.examples), width)
    with in_eval_mode(model.network):
        for _, batch, states in answer_states(model, bench.runtime, own, READ_TOKENS):
            found[places[own.answer_places(batch)]] = model.logits(states)[:, outputs].float().cpu()
    return bench.processes.add_up(found.to(bench.processes.device)).cpu()
