/*
 * csv_scan.h
 *		A scanner over the bytes of one record in CSV.
 *
 * It cuts a record as COPY's CSV format does, with commas and double quotes, tells where fields lie, and
 * copies nothing. It throws nothing and allocates nothing, so that it can be fuzzed
 * without a server.
 */
#ifndef HYBRIDIOT_CSV_SCAN_H
#define HYBRIDIOT_CSV_SCAN_H

/* A field, where it lies in the record. */
typedef struct CsvField
{
	bool		null;			/* empty, and without quotes */
	bool		quoted;			/* CsvUnquote() makes its text; else its text is its bytes */
	int32		len;
	const char *bytes;
} CsvField;

typedef struct CsvScan
{
	const char *start;
	const char *at;
	const char *end;
	bool		ended;			/* the last field was found */
	const char *problem;		/* what is wrong at "at", after CSV_STEP_BAD */
} CsvScan;

typedef enum CsvStep
{
	CSV_STEP_FIELD,
	CSV_STEP_END,				/* there are no more */
	CSV_STEP_BAD
} CsvStep;

extern void CsvScanInit(CsvScan *scan, const char *bytes, int32 len);

/* The next field. There is one at least: an empty record has one empty field. */
extern CsvStep CsvNextField(CsvScan *scan, CsvField *field);

/* The text of a quoted field into out, which must have room for field->len bytes. Returns its length. */
extern int32 CsvUnquote(const CsvField *field, char *out);

#endif							/* HYBRIDIOT_CSV_SCAN_H */
