/*
 * retry.h
 *		Dead letters of windowed pipelines, tried again.
 */
#ifndef HYBRIDIOT_RETRY_H
#define HYBRIDIOT_RETRY_H

#include "pipeline/pipeline.h"

/*
 * Try dead letters of a windowed pipeline again, those that failed since then (DT_NOBEGIN: all). Returns how many passed. In
 * the caller's transaction, with the definition locked by PipelineOfCaller().
 */
extern int64 RetryWindowed(Pipeline *pipeline, TimestampTz since);

#endif							/* HYBRIDIOT_RETRY_H */
