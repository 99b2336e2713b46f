"""The sizes that training/train.py knows: a row each."""

import dataclasses

import model
import tokenizer


@dataclasses.dataclass(frozen=True)
class Preset:
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    num_experts: int
    expert_size: int
    batch_tokens: int  # of one step
    learning_rate: float
    budget_tokens: int  # of the whole training, unless --tokens or --budget-minutes says otherwise
    patience: int  # tokens that a length may take before the next one comes (curriculum.py)

    def model_config(self):
        return model.ModelConfig(
            vocab_size=len(tokenizer.build()),
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            num_experts=self.num_experts,
            expert_size=self.expert_size,
        )


# Hidden size 256, so that rows that read the hidden state hold whole blocks of every quant type.
PRESETS = {
    # 2 CPU cores, three hours. 3.0 million parameters, 1.8 of them used by a token.
    "cpu": Preset(256, 4, 4, 2, 8, 64, batch_tokens=4096, learning_rate=3e-3, budget_tokens=42_000_000, patience=2_500_000),
    # A data-centre GPU, half an hour. 7.7 million parameters, 15.4 MB as BF16.
    "full": Preset(256, 6, 8, 4, 8, 128, batch_tokens=65536, learning_rate=3e-3, budget_tokens=1_200_000_000, patience=100_000_000),
    # Tests.
    "test": Preset(64, 2, 2, 1, 4, 32, batch_tokens=512, learning_rate=2e-3, budget_tokens=100_000, patience=9_000),
}
