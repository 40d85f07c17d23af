/*
 * reopen.h
 *		Dead letters of windowed pipelines, tried again; late records folded into windows that are closed.
 */
#ifndef HYBRIDIOT_REOPEN_H
#define HYBRIDIOT_REOPEN_H

#include "pipeline/pipeline.h"

/*
 * Try dead letters of a windowed pipeline again, those that failed since then (DT_NOBEGIN: all). Returns how many passed. In
 * the caller's transaction, with the definition locked by PipelineOfCaller().
 */
extern int64 RetryWindowed(Pipeline *pipeline, TimestampTz since);

#endif							/* HYBRIDIOT_REOPEN_H */
