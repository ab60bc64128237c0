# minitron in a container, as an ordinary user, with the versions that the tests ran with.
#
#   docker build -t minitron .                                                            torch for CPUs
#   docker build -t minitron:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .      torch for CUDA
#   docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" minitron demo
#   docker run --rm --gpus all --ipc host -v "$PWD:/data" --user "$(id -u):$(id -g)" minitron:cuda demo
FROM python:3.12-slim

# torch comes first and from an index of its own: the wheels of PyPI bring CUDA along, those of this index do not.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/minitron
COPY constraints.txt ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"

COPY pyproject.toml README.md LICENSE ./
COPY recipes ./recipes
COPY minitron_cli ./minitron_cli
RUN pip install --no-cache-dir -c constraints.txt .

# Whoever runs it: caches and results are in the directory that is mounted.
ENV HF_HOME=/data/.cache/huggingface XDG_CACHE_HOME=/data/.cache PYTHONUNBUFFERED=1
RUN useradd --create-home minitron && mkdir /data && chown minitron /data
USER minitron
WORKDIR /data
ENTRYPOINT ["minitron"]
CMD ["--help"]
