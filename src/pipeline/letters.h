/*
 * letters.h
 *		Records that are set aside: judged, kept with the reason, tried again.
 */
#ifndef HYBRIDIOT_LETTERS_H
#define HYBRIDIOT_LETTERS_H

#include "pipeline/pipeline.h"

/*
 * What an error says, for a person to act on: message, DETAIL, and the constraint, column and table that
 * neither of them names. In the current memory context.
 */
extern char *ErrorMessage(const ErrorData *error);

/* Why a record of that status, which is not good, is a dead letter. */
extern DeadReason DeadReasonOf(RecordStatus status);

/* Mark a record of the batch as rejected by the statement. */
extern void RejectRecord(Pipeline *pipeline, int number, const ErrorData *error);

/*
 * The first of records [first, last) at which the pipeline has to stop, as on_error and max_errors say,
 * if those that are good now stay good; last: none.
 */
extern int	FirstRecordTooMany(Pipeline *pipeline, int first, int last);
/* ereport 55000 with the record's place: it is one too many. */
extern void StopAtRecord(Pipeline *pipeline, int number);
/* Records [first, last) are settled: they count towards max_errors. */
extern void CountErrorsInRow(Pipeline *pipeline, int first, int last);
/* All three at once, for windowed pipelines, which stop with nothing kept. Returns how many are not good. */
extern int	JudgeDeadRecords(Pipeline *pipeline, int first, int last);

/* Write one dead letter per record of [first, last) that is not good. */
extern void WriteDeadRecords(Pipeline *pipeline, int first, int last);

/*
 * Letters as records of the pipeline's batch, decoded; bytes in the current memory context. ereport 27000 when some are
 * not there any more.
 */
extern void LettersToBatch(Pipeline *pipeline, const DeadLetterPlace *places, int n);
/* How many of the next n letters make a batch. */
extern int	LettersAtOnce(const Pipeline *pipeline, const DeadLetterPlace *places, int n);

#endif							/* HYBRIDIOT_LETTERS_H */
