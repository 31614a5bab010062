"""The engine: training, compression, export and serving of PyTorch models. It exports nothing: import its modules."""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
# OpenVINO and NNCF report their use to their makers where they find this package, and do not where they don't: a bank's
# service, or a hospital's, calls nobody.
