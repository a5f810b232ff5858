"""Expected calibration error: how far confidence is from accuracy (Guo et al. 2017, 15 equal-width bins)."""

import datasets
import evaluate
import numpy as np


class CalibrationError(evaluate.Metric):
    """Mean over bins of |accuracy - confidence|, weighted by rows; predictions are class probabilities."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Guo et al. 2017, On Calibration of Modern Neural Networks",
            inputs_description="predictions: probabilities (n, classes); references: class indices",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int], bins: int = 15) -> dict[str, float]:
        probabilities = np.asarray(predictions, dtype=np.float64)
        confidence = probabilities.max(axis=1)
        right = probabilities.argmax(axis=1) == np.asarray(references)
        bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
        return {"calibration_error": float(np.abs(gaps).sum() / len(right))}
