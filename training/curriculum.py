"""Which length the rows of each step have: short ones first, as retrieval forms there by far the soonest.

Steps are grouped in blocks. What a block may draw from is decided when the block before the one before it ends, so that
workers can prepare a whole block ahead, and a resumed run draws the same.
"""

from tasks import sample

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
_ALL_LEARNED = len(LENGTHS)  # the stage after the last length's
_IN_THE_END = (1, 2, 3, 3, 3, 2, 1)  # how often each length is drawn then: fewer of the costly and of the narrow
BLOCK_STEPS = 32
_GATE = "retrieval"  # the task that decides
_GATE_ACCURACY = 0.8  # share of exact replies at the longest length so far
_MEMORY = 0.7  # of earlier blocks in the running accuracy


class Curriculum:
    def __init__(self, seed, patience, stages=(0, 0), accuracy=None):
        """patience: tokens after which the next length comes even so; the one after that waits as long again."""
        self.seed, self.patience = seed, patience
        self.stages = list(stages)  # of every block so far and the next: how many lengths beyond the first
        self.accuracy = dict(accuracy or {})  # running accuracy of the gate task, by length

    def state(self):
        return {"stages": self.stages, "accuracy": self.accuracy}

    def length(self, step):
        """The length of a step's rows: the longest so far in half of the steps, each shorter one in half of the rest; any
        of them once the last one is learned."""
        rng = sample.rng_of("curriculum", self.seed, step)
        at = self.stages[step // BLOCK_STEPS]
        if at == _ALL_LEARNED:
            return rng.choices(LENGTHS, _IN_THE_END)[0]
        while at > 0 and rng.random() < 0.5:
            at -= 1
        return LENGTHS[at]

    def end_block(self, results, tokens):
        """Takes a block's {length: (right, total)} of the gate task and the tokens of all blocks so far, and decides about
        the block after the next."""
        for length, (right, total) in results.items():
            if total:
                before = self.accuracy.get(length, 0.0)
                self.accuracy[length] = _MEMORY * before + (1 - _MEMORY) * right / total
        stage = self.stages[-1]
        learned = stage < _ALL_LEARNED and self.accuracy.get(LENGTHS[stage], 0.0) >= _GATE_ACCURACY
        if stage < _ALL_LEARNED and (learned or tokens > self.patience * (stage + 1)):
            stage += 1
        self.stages.append(stage)
