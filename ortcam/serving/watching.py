"""Watch a folder of model files: load those that appear or change, when they are whole."""

from __future__ import annotations

from pathlib import Path

from ortcam.serving.service import Service, State, state_of


class Watch:
    """Looks at a folder again and again. A file is loaded when it has stayed the same between two looks."""

    def __init__(self, service: Service, folder: Path | None) -> None:
        """Begin; the files that are loaded already are known.

        Args:
            service: takes the models; a file's name without .onnx is the model's name.
            folder: the folder; None to look at nothing.
        """
        self._service, self._folder = service, folder
        self._seen: dict[Path, State] = {}
        self._tried: dict[Path, State] = {}

    def look(self) -> None:
        """Load each file that is new or has changed since it was last tried."""
        for path in [] if self._folder is None else model_files(self._folder):
            state = state_of(path)
            loaded = self._service.models.get(path.stem)
            if loaded is not None and loaded.path != path:
                continue  # the name belongs to a file that was named
            known = (self._tried.get(path), None if loaded is None else loaded.state)
            settled = self._seen.get(path) == state
            if state is None or state in known:
                continue
            self._seen[path] = state
            if settled:
                self._tried[path] = state
                self._service.try_to_load({path.stem: path})


def model_files(folder: Path) -> list[Path]:
    """Return the model files of a folder by name; none of a folder that cannot be read."""
    try:
        return sorted(path for path in folder.glob("[!.]*.onnx") if path.is_file())
    except OSError:
        return []
