"""anomalib's EfficientAD-S and PatchCore as ONNX files, and what torch and OpenVINO need for an image.

A program of its own, for an environment with anomalib and OpenVINO: ``python peers_of_anomalib.py FOLDER``. It times
``ours.onnx`` and ``ours-int8.onnx`` of that folder by OpenVINO as well, and writes ``peers.json`` there. Weights and
memory bank are random: only time is measured.
"""

import json
import statistics
import sys
import time
from pathlib import Path

THREADS, SIZE, PATCHES, WARM_UP, REPEATS = 2, 256, 10_854, 3, 15


def _ms(call):
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def main(folder: Path) -> None:
    """Export, time, write."""
    import numpy as np
    import openvino
    import torch
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel, EfficientAdModelSize
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    image = torch.rand(1, 3, SIZE, SIZE)
    patchcore = PatchcoreModel(
        layers=["blocks.2", "blocks.4"], backbone="tf_efficientnet_lite0", pre_trained=False, num_neighbors=9
    )
    channels = patchcore.train()(image).shape[1]
    patchcore.memory_bank = torch.rand(PATCHES, channels)
    models = {
        "EfficientAD-S": EfficientAdModel(teacher_out_channels=384, model_size=EfficientAdModelSize.S),
        "PatchCore": patchcore,
    }
    times: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        model.eval()
        with torch.inference_mode():
            times[name] = {"torch": _ms(lambda model=model: model(image))}
        file = folder / f"{name}.onnx"
        torch.onnx.export(model, (image,), file, input_names=["images"], opset_version=17, dynamo=False)
    core = openvino.Core()
    pixels = (image[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)[None]
    for name in (*models, "ours", "ours-int8"):
        given = image.numpy() if name in models else pixels
        network = core.read_model(str(folder / f"{name}.onnx"))
        network.reshape({"images": list(given.shape)})  # the peers' files have one size anyhow
        # Left alone, OpenVINO computes in bfloat16 where the processor can, and scores move by several per cent.
        wanted = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(network, "CPU", wanted)
        times.setdefault(name, {})["OpenVINO"] = _ms(lambda compiled=compiled, given=given: compiled(given))
    (folder / "peers.json").write_text(json.dumps(times))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
