"""What a step costs: beside plain fine-tuning, beside a naive implementation, and as everything grows."""
