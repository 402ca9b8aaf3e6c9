"""The fused head: surprisal, entropy, varentropy and rank from hidden states, without logits."""
