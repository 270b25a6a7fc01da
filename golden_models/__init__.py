"""Small trained models with golden inputs and float outputs, imported as `qir.golden_models`."""
