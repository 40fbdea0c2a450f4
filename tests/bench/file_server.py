"""The measure of a load: a plaintext file by starlette's `FileResponse`, under the HTTP server that the loader has.

`python tests/bench/file_server.py FILE PORT`
"""

import sys

import uvicorn
from fastapi import FastAPI
from starlette.responses import FileResponse

from azaion_loader.http_server import BoundedHttpProtocol


def main() -> None:
    path, port = sys.argv[1], int(sys.argv[2])
    app = FastAPI()

    @app.post("/load/{name}")
    async def _load(name: str) -> FileResponse:
        return FileResponse(path, media_type="application/octet-stream")

    uvicorn.run(app, host="127.0.0.1", port=port, http=BoundedHttpProtocol, ws="none", log_config=None)


if __name__ == "__main__":
    main()
