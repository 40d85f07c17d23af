/*
 * decode_csv.c
 *		CSV payloads: one DecodeOps.
 *
 * A payload is one record, as COPY reads one: no header, commas, double quotes. Its fields belong to the
 * payload columns in the table's order, each through the input function of its type.
 */
#include "postgres.h"

#include "stream/convert.h"
#include "stream/csv_scan.h"
#include "stream/decode.h"

struct Decoder
{
	int			ncolumns;
	int		   *places;			/* in values and isnull */
	Converter **converters;
	CsvField   *fields;
	DecodeBuffer text;			/* a field without its quotes */
};

static Decoder *
csv_prepare(const DecodeColumn *columns, int ncolumns)
{
	Decoder    *decoder = palloc0(sizeof(Decoder));

	DecodeRefusePaths(&DecodeCsv, columns, ncolumns);
	decoder->ncolumns = ncolumns;
	decoder->places = palloc(sizeof(int) * ncolumns);
	decoder->converters = palloc(sizeof(Converter *) * ncolumns);
	decoder->fields = palloc(sizeof(CsvField) * ncolumns);
	DecodeBufferInit(&decoder->text);
	for (int i = 0; i < ncolumns; i++)
	{
		decoder->places[i] = columns[i].attnum - 1;
		decoder->converters[i] = ConverterCreate(columns[i].name, columns[i].typid, columns[i].typmod);
	}
	return decoder;
}

static bool
split(Decoder *decoder, const char *bytes, int32 len, DecodeError *error)
{
	CsvScan		scan;
	CsvField	field;
	CsvStep		step;
	int			n = 0;

	CsvScanInit(&scan, bytes, len);
	while ((step = CsvNextField(&scan, &field)) == CSV_STEP_FIELD)
	{
		if (n < decoder->ncolumns)
			decoder->fields[n] = field;
		n++;
	}
	if (step == CSV_STEP_BAD)
		return DecodeRefuse(error, ERRCODE_BAD_COPY_FILE_FORMAT, "invalid CSV: %s, at byte %d",
							scan.problem, (int) (scan.at - scan.start));
	return n == decoder->ncolumns ||
		DecodeRefuse(error, ERRCODE_BAD_COPY_FILE_FORMAT, "invalid CSV: expected %d fields, found %d",
					 decoder->ncolumns, n);
}

static bool
csv_decode(Decoder *decoder, const char *bytes, int32 len, Datum *values, bool *isnull,
		   DecodeError *error)
{
	if (!DecodeCheckUtf8(bytes, len, error) || !split(decoder, bytes, len, error))
		return false;
	for (int i = 0; i < decoder->ncolumns; i++)
	{
		const CsvField *field = &decoder->fields[i];
		Converter  *converter = decoder->converters[i];
		int			place = decoder->places[i];
		const char *text = field->bytes;
		int32		text_len = field->len;

		isnull[place] = field->null;
		if (field->null)
		{
			if (!ConvertNull(converter, error))
				return false;
			continue;
		}
		if (field->quoted)
		{
			char	   *out = DecodeBufferReserve(&decoder->text, text_len);

			text_len = CsvUnquote(field, out);
			text = out;
		}
		if (!Convert(converter, CONVERT_INPUT, text, text_len, &values[place], error))
			return false;
	}
	return true;
}

const DecodeOps DecodeCsv = {
	.format = "csv",
	.prepare = csv_prepare,
	.decode = csv_decode,
};
