# hybridiot: PGXS. `make`, `make install`, `make installcheck`; everything else is in test/run.

# Found through the Makefile's own place, so that a build outside the tree works.
srcdir ?= $(patsubst %/,%,$(dir $(firstword $(MAKEFILE_LIST))))

EXTENSION = hybridiot
EXTVERSION = 0.2.0
MODULE_big = hybridiot
DATA_built = $(EXTENSION)--$(EXTVERSION).sql
# Scripts of earlier versions, and from one to the next.
DATA = $(sort $(wildcard $(srcdir)/sql/release/*.sql))

OBJS = $(patsubst %.c,%.o,$(sort $(wildcard $(srcdir)/src/*/*.c)))

PG_CPPFLAGS = -I$(srcdir)/src
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers \
	-Wno-cast-function-type -Wno-clobbered $(if $(WERROR),-Werror)
# Debian 12 has no link name for proton's core alone.
SHLIB_LINK = -lrdkafka -lqpid-proton -lssl -lcrypto
EXTRA_CLEAN = $(DATA_built)

# Regression tests: what can be said with transport 'table' and run_pipeline().
REGRESS = $(sort $(basename $(notdir $(filter-out $(srcdir)/sql/hybridiot.sql,$(wildcard $(srcdir)/sql/*.sql)))))
REGRESS_OPTS = --inputdir=$(srcdir) --encoding=UTF8 --no-locale --temp-config=$(srcdir)/test/regress.conf

# LLVM bitcode would double the build for a library whose hot loops are its own.
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(EXTENSION)--$(EXTVERSION).sql: sql/hybridiot.sql
	cp $< $@

# Headers are few and shared: any change rebuilds all.
$(OBJS): $(wildcard src/*/*.h)

# The long proofs; about 20 minutes.
.PHONY: torture
torture:
	$(srcdir)/test/torture/commands
