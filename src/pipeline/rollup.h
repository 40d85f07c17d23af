/*
 * rollup.h
 *		Windowed pipelines: feed -> aggregate -> checkpoint -> emit (windows.md §3).
 */
#ifndef HYBRIDIOT_ROLLUP_H
#define HYBRIDIOT_ROLLUP_H

#include "pipeline/pipeline.h"

/*
 * Refuse, with 0A000 and a HINT, what a windowed pipeline cannot run. Called by create_pipeline
 * (and alter_pipeline) with the analyzed statement and the options it would have.
 */
extern void RollupCheck(Statement *statement, const PipelineOptions *options, Oid owner);

/*
 * How far, in microseconds, reading must begin before a time so that the windows from that time on are whole. As
 * RollupCheck(), in a transaction.
 */
extern int64 RollupReach(Statement *statement, const PipelineDefinition *def);

/*
 * Take the statement apart, prepare feed and finish queries, load groups and progress as of the last checkpoint.
 * In a transaction; everything lives in pipeline->context.
 */
extern Rollup *RollupOpen(Pipeline *pipeline);

/* Frees what RollupOpen() made; the durable state is in the tables. NULL allowed. */
extern void RollupClose(Rollup *rollup);

/*
 * Take the good records of batch [first, last) into groups, in order: stream
 * times rise (pipeline->parts[].stream_time, last_record_at), each (record, window) pair is accepted or noted as late.
 * In a transaction, called as ourselves; becomes the owner around what the
 * user wrote. Dead letters (late pairs; undecodable and future records of
 * this range) are copied and kept until the checkpoint. Throws on any error: memory is
 * not transactional, so the caller then closes the Rollup, opens it again from
 * the last checkpoint and replays in smaller and smaller pieces until the bad record stands
 * alone; it then comes back with status RECORD_REJECTED in the batch.
 */
extern void RollupAdvance(Pipeline *pipeline, StreamBatch *batch);

/* Is there anything a checkpoint would write now (groups changed, windows closable at this clock, dead letters, positions)? */
extern bool RollupCheckpointDue(Pipeline *pipeline, TimestampTz now);
/* Must a checkpoint come before more records are taken, whatever checkpoint_interval says? Memory is near its bounds. */
extern bool RollupCheckpointUrgent(Pipeline *pipeline);
/* When RollupCheckpointDue() could next become true by the passing of time alone; DT_NOEND: never. */
extern TimestampTz RollupNextDeadline(Pipeline *pipeline, TimestampTz now);

/*
 * In one transaction, which the caller commits: changed groups' states, dead letters, final or changed rows through the statement
 * (as the owner), closed boundary, watermark. The caller writes positions in the same transaction. Returns true if more closed windows remain to be
 * written (bounded steps: call again in the next transaction). rows: how many rows were written or deleted.
 */
extern bool RollupCheckpoint(Pipeline *pipeline, TimestampTz now, uint64 *rows);

#endif							/* HYBRIDIOT_ROLLUP_H */
