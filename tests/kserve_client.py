"""Ask a server with KServe's client, in a process of its own: its messages have the names of tritonclient's.

    python tests/kserve_client.py URL MODEL PHOTO

Prints what the client returned, as JSON. Importing `kserve` imports its whole SDK, which needs 30 packages; its client
needs five, so the package is stood in for by its folder.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import sys
import types
from pathlib import Path


async def ask(url: str, model: str, photo: bytes) -> dict[str, object]:
    spec = importlib.util.find_spec("kserve")
    assert spec is not None and spec.submodule_search_locations is not None
    package = types.ModuleType("kserve")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["kserve"] = package
    import numpy as np
    from kserve.inference_client import InferenceRESTClient, RESTConfig
    from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput

    first = InferenceRESTClient(RESTConfig(protocol="v1", retries=0))
    encoded = {"instances": [{"image": {"b64": base64.b64encode(photo).decode()}}], "parameters": {"targets": [3]}}
    explained = await first.explain(url, model, encoded)
    predicted = await first.infer(url, encoded, model_name=model)

    second = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    image, target = InferInput("image", [1], "BYTES"), InferInput("target", [1], "INT64")
    image.set_data_from_numpy(np.array([photo], dtype=object), binary_data=True)
    target.set_data_from_numpy(np.array([3], np.int64), binary_data=True)
    maps = {}
    for binary in (True, False):
        outputs = [RequestedOutput("saliency", {"binary_data": binary}), RequestedOutput("label", {})]
        answer = await second.infer(
            url, InferRequest(model, [image, target], request_outputs=outputs), model_name=model
        )
        maps[str(binary)] = [one.as_numpy().tolist() for one in answer.outputs]
    states = [
        await second.is_server_live(url), await second.is_server_ready(url), await second.is_model_ready(url, model),
        await first.is_model_ready(url, model),
    ]  # fmt: skip
    return {"explained": explained, "predicted": predicted, "maps": maps, "states": states}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes()))))
