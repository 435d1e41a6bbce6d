# Wrenn. `make help` lists the targets.
PREFIX ?= /usr/local
WRENN_ROOT ?= /var/lib/wrenn
CMD ?=
PROGRAMS := wrenn wrenn-snap wrenn-uffd wrenn-cow wrenn-net wrenn-launch wrenn-guest wrenn-vmm

.PHONY: help demo test setup build image lab lint lifecycle bench install

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

demo: ## the life of a sandbox, from a fresh clone: packages, programs, image, and every step shown
	@scripts/demo

test: ## all tests: here, and the privileged ones in the lab (as root)
	scripts/test

setup: ## install what building, the lab and the tests need (Debian; as root or through sudo)
	scripts/setup

build: ## build all programs, in target/debug
	cargo build --workspace --bins

image: ## make a guest kernel, initramfs and minimal root, in target/image (as root)
	scripts/image

lab: ## a shell in the lab, or CMD='…'
	scripts/lab $(CMD)

lint: ## formatting, clippy and shellcheck, as CI runs them
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	shellcheck --severity=warning $$(git ls-files scripts .ci)

lifecycle: build image ## one sandbox's whole life in the lab, by pipes and jq (WRENN_VMM says on which)
	scripts/lab scripts/lifecycle.sh

bench: ## the benchmarks, each beside what it is compared with
	cargo bench --package wrenn-benches

install: ## programs to PREFIX/bin, systemd units to PREFIX/lib; kernel and images of `make image`, if made, to WRENN_ROOT
	install -d $(DESTDIR)$(PREFIX)/bin
	bin=$$(scripts/lib/programs) && install -m 755 $(PROGRAMS:%=$$bin/%) $(DESTDIR)$(PREFIX)/bin
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in dist/systemd/*.service; do \
		to=$(DESTDIR)$(PREFIX)/lib/systemd/system/$$(basename $$unit) && install -m 644 $$unit $$to && \
		sed -i 's|/usr/local/|$(PREFIX)/|; s|/var/lib/wrenn|$(WRENN_ROOT)|' $$to || exit 1; \
	done
	if [ -f target/image/kernel ]; then \
		install -d $(DESTDIR)$(WRENN_ROOT)/kernels && \
		install -m 644 target/image/initrd $(DESTDIR)$(WRENN_ROOT)/kernels/initrd && \
		install -m 644 target/image/kernel $(DESTDIR)$(WRENN_ROOT)/kernels/vmlinux; \
	fi
	for root in $(wildcard target/image/*/rootfs.ext4); do \
		to=$(DESTDIR)$(WRENN_ROOT)/images/$$(basename $$(dirname $$root)) && install -d $$to && \
		cp --sparse=always $$root $$to/.rootfs.new && mv $$to/.rootfs.new $$to/rootfs.ext4 || exit 1; \
	done
