"""Explain a photo with a packed explainer, with onnxruntime and numpy alone.

    python explain.py EXPLAINER PIXELS HEIGHT WIDTH TARGET MAP

PIXELS is uint8 [height,width,3]; MAP gets float32 [1,height,width]. Prints JSON.
"""

import json
import sys

import numpy as np
import onnxruntime

explainer, photo, height, width, target, output = sys.argv[1:]
session = onnxruntime.InferenceSession(explainer, providers=["CPUExecutionProvider"])
image = np.fromfile(photo, np.uint8).reshape(int(height), int(width), 3)
scores, chosen, saliency, scored, error = session.run(None, {"image": image, "target": np.array([int(target)])})
saliency.tofile(output)
print(
    json.dumps(
        {"target": int(chosen[0]), "scored": int(scored[0]), "scores": scores.tolist(), "error": error[0].tolist()}
    )
)
