# LiveReel on CPUs: `docker build -t livereel .`, then
# `docker run -p 8000:8000 -e LIVEREEL_API_KEY=... livereel`.
FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# torch's CPU build first, then the rest as it was tested with.
RUN python -m venv /opt/livereel \
    && /opt/livereel/bin/pip install --no-cache-dir -c constraints.txt --no-deps \
         --index-url https://download.pytorch.org/whl/cpu torch \
    && /opt/livereel/bin/pip install --no-cache-dir -c constraints.txt '.[serve,ray]'

FROM python:3.11-slim-bookworm
COPY --from=build /opt/livereel /opt/livereel
RUN useradd --create-home livereel
USER livereel
ENV PATH=/opt/livereel/bin:$PATH RAY_AUTH_MODE=token
EXPOSE 8000
ENTRYPOINT ["livereel"]
CMD ["serve", "--host", "0.0.0.0"]
