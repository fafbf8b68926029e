"""The papers' mathematics as pure functions on tensors; no files, no parameters, no devices."""
