"""From activations to numbers: sparsity metrics, statistics and the report. CPU only, without torch."""
