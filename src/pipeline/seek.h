/*
 * seek.h
 *		Setting a pipeline's positions by hand.
 */
#ifndef HYBRIDIOT_SEEK_H
#define HYBRIDIOT_SEEK_H

#include "core/catalog.h"

/*
 * Let a pipeline begin anew at its start_at, which the caller has stored: positions, event time and groups go, and
 * that is recorded. Needs the definition locked.
 */
extern void PipelineRestart(PipelineDefinition *def);

/*
 * Move to a position in the words of start_at. Offsets: only the partitions that are named move (of a windowed
 * pipeline, all must be named); else the words become start_at, and everything begins anew there. Clears a failure.
 * Needs the definition locked; ereport 22023.
 */
extern void PipelineSeek(PipelineDefinition *def, const char *position);

#endif							/* HYBRIDIOT_SEEK_H */
