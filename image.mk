# The container image: build, checks, end-to-end tests. See docs/operations.md.
#
#   BASE_IMAGE   default python:3.11-slim, and a local stand-in where no registry has it (scripts/base-image)
#   PLATFORM     default the engine's
#   IMAGE_TAG    default azaion/loader:latest
#   KEY_PROFILE  the key profile to build in; without it the development profile
BASE_IMAGE ?=
PLATFORM ?=
IMAGE_TAG ?= azaion/loader:latest
IMAGE_TAG_ARM64 ?= $(IMAGE_TAG)-arm64
DEVKIT_TAG ?= azaion/loader-e2e:latest
REQUIRE_KEY_PROFILE ?= 0
export BASE_IMAGE PLATFORM REQUIRE_KEY_PROFILE
ENGINE := scripts/with-engine

.PHONY: image image-arm64 release-image image-e2e push test-image e2e test-arm64 lint-ship

image: ## the image for this machine, or for PLATFORM
	IMAGE_TAG=$(IMAGE_TAG) $(ENGINE) scripts/build-image

image-arm64: ## the image for ARM64 boards; elsewhere it is built under emulation
	PLATFORM=linux/arm64 IMAGE_TAG=$(IMAGE_TAG_ARM64) $(ENGINE) scripts/build-image

release-image: ## the same as `image`, but neither a stand-in nor the development profile will do
	REQUIRE_KEY_PROFILE=1 IMAGE_TAG=$(IMAGE_TAG) $(ENGINE) scripts/build-image

push: ## what was built as IMAGE_TAG, to the registry in its name
	docker push $(IMAGE_TAG)

image-e2e: ## the servers and the tests of `make e2e`
	IMAGE_TAG=$(DEVKIT_TAG) DOCKERFILE=tests/e2e/Dockerfile KEY_PROFILE= $(ENGINE) scripts/build-image

$(VENV)/.e2e: requirements-e2e.txt $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-e2e.txt
	touch $@

# A profile of its own, made anew for each run: searching for the development profile's short words would prove little.
TEST_PROFILE := build/test-image.toml
test-image: dev ## what the image gives away: built with a random key profile, searched for it
	mkdir -p $(dir $(TEST_PROFILE))
	$(BIN)/python -c 'import secrets; [print(f"{n} = \"{secrets.token_hex(32)}\"") for n in ("hardware_salt", "api_salt", "resource_secret")]' >$(TEST_PROFILE)
	export KEY_PROFILE=$(CURDIR)/$(TEST_PROFILE) LOADER_IMAGE=azaion/loader:profile-test; \
	  trap '$(ENGINE) docker image rm --force $$LOADER_IMAGE >/dev/null; rm -f $(TEST_PROFILE)' EXIT; \
	  IMAGE_TAG=$$LOADER_IMAGE $(ENGINE) scripts/build-image; \
	  $(ENGINE) $(PYTEST) tests/image

e2e: $(VENV)/.e2e image image-e2e ## the image as it ships, tested through the network on a real engine
	$(ENGINE) $(BIN)/python tests/e2e/drive.py --loader $(IMAGE_TAG) --devkit $(DEVKIT_TAG)

test-arm64: dev image-arm64 ## the tests of the compiled modules, inside the ARM64 image
	$(ENGINE) scripts/test-in-image $(IMAGE_TAG_ARM64) linux/arm64

SHELL_SCRIPTS := $(wildcard scripts/build-image scripts/base-image scripts/stand-in-base scripts/stand-in-builder scripts/test-in-image scripts/with-engine scripts/check-units scripts/need .ci/run)
lint-ship: $(VENV)/.e2e ## Dockerfiles, compose files, pipelines, manifests, units, shell scripts
	$(BIN)/hadolint --config .hadolint.yaml Dockerfile tests/e2e/Dockerfile
	$(BIN)/yamllint --strict --config-file .yamllint.yaml docker-compose.yml docker-compose.test.yml .woodpecker deploy
	$(BIN)/check-jsonschema --builtin-schema vendor.woodpecker-ci .woodpecker/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml docker-compose.test.yml
	LOADER_IMAGE=image DOCKER_GID=1 $(BIN)/docker-compose --file docker-compose.yml config --quiet
	$(BIN)/docker-compose --file docker-compose.test.yml --profile run config --quiet
	$(BIN)/kubernetes-validate --strict --kubernetes-version 1.31.0 deploy/kubernetes/*.yaml
	$(BIN)/shellcheck $(SHELL_SCRIPTS)
	scripts/check-units
