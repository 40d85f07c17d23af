/*
 * fast_input.c
 *		The usual spellings of the usual types, read without their input functions.
 *
 * See fast_input.h for what every function here promises.
 */
#include "postgres.h"

#include <float.h>

#include "utils/datetime.h"
#include "utils/numeric.h"

#include "core/compat.h"
#include "stream/fast_input.h"

static inline bool
digit(char c, int *value)
{
	*value = c - '0';
	return c >= '0' && c <= '9';
}

bool
FastInteger(const char *text, int32 len, int64 *value)
{
	const char *end = text + len;
	bool		negative = len > 0 && *text == '-';
	int64		number = 0;

	if (negative)
		text++;
	if (text == end || end - text > 18)
		return false;
	for (; text < end; text++)
	{
		int			d;

		if (!digit(*text, &d))
			return false;
		number = number * 10 + d;
	}
	*value = negative ? -number : number;
	return true;
}

/* ---- floats ---- */

/* A decimal number as mantissa and power of ten; false: not of that shape, or of more than 19 digits. */
static bool
split_decimal(const char *text, int32 len, bool *negative, uint64 *mantissa, int *power)
{
	const char *end = text + len;
	const char *start;
	uint64		number = 0;
	int			digits = 0;
	int			exponent = 0;
	int			d;

	*negative = len > 0 && *text == '-';
	if (*negative)
		text++;
	for (start = text; text < end && digit(*text, &d); text++)
		number = number * 10 + d;
	if (text == start)
		return false;
	digits = (int) (text - start);
	*power = 0;
	if (text < end && *text == '.')
	{
		for (start = ++text; text < end && digit(*text, &d); text++)
			number = number * 10 + d;
		if (text == start)
			return false;
		digits += (int) (text - start);
		*power = -(int) (text - start);
	}
	if (text < end && (*text == 'e' || *text == 'E'))
	{
		bool		minus;

		text++;
		minus = text < end && *text == '-';
		if (text < end && (*text == '-' || *text == '+'))
			text++;
		if (text == end || end - text > 3)
			return false;
		for (; text < end && digit(*text, &d); text++)
			exponent = exponent * 10 + d;
		*power += minus ? -exponent : exponent;
	}
	/* 19 digits fit; with more the sum above has overflown, and means nothing. */
	*mantissa = number;
	return text == end && digits <= 19;
}

/*
 * Where mantissa and power of ten are exact as floats, one multiplication or division rounds
 * once, hence rightly (Clinger 1990). Not where the machine computes wider than the type.
 */
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD == 0
#define ROUNDS_ONCE true
#else
#define ROUNDS_ONCE false
#endif

bool
FastFloat8(const char *text, int32 len, double *value)
{
	static const double powers[] = {
		1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
		1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22
	};
	bool		negative;
	uint64		mantissa;
	int			power;
	double		number;

	if (!ROUNDS_ONCE ||
		!split_decimal(text, len, &negative, &mantissa, &power) ||
		mantissa > UINT64CONST(1) << 53 || power < -22 || power > 22)
		return false;
	number = (double) mantissa;
	number = power < 0 ? number / powers[-power] : number * powers[power];
	*value = negative ? -number : number;
	return true;
}

bool
FastFloat4(const char *text, int32 len, float *value)
{
	static const float powers[] = {
		1e0f, 1e1f, 1e2f, 1e3f, 1e4f, 1e5f, 1e6f, 1e7f, 1e8f, 1e9f, 1e10f
	};
	bool		negative;
	uint64		mantissa;
	int			power;
	float		number;

	if (!ROUNDS_ONCE ||
		!split_decimal(text, len, &negative, &mantissa, &power) ||
		mantissa > UINT64CONST(1) << 24 || power < -10 || power > 10)
		return false;
	number = (float) mantissa;
	number = power < 0 ? number / powers[-power] : number * powers[power];
	*value = negative ? -number : number;
	return true;
}

bool
FastNumeric(const char *text, int32 len, Datum *value)
{
	bool		negative;
	uint64		mantissa;
	int			power;

	/* An exponent would change the scale that is shown. */
	if (!split_decimal(text, len, &negative, &mantissa, &power) || power > 0 || len > 18 ||
		memchr(text, 'e', len) || memchr(text, 'E', len))
		return false;
	*value = NumericGetDatum(int64_div_fast_to_numeric(negative ? -(int64) mantissa : (int64) mantissa, -power));
	return true;
}

/* ---- dates and times ---- */

static inline bool
two_digits(const char *text, int max, int *value)
{
	int			tens;
	int			ones;

	if (!digit(text[0], &tens) || !digit(text[1], &ones))
		return false;
	*value = tens * 10 + ones;
	return *value <= max;
}

/* The first ten bytes: days since 2000-01-01. */
static bool
ten_bytes_date(const char *text, int *days)
{
	int			century;
	int			year;
	int			month;
	int			day;

	if (!two_digits(text, 99, &century) || !two_digits(text + 2, 99, &year) ||
		text[4] != '-' || !two_digits(text + 5, 12, &month) ||
		text[7] != '-' || !two_digits(text + 8, 31, &day))
		return false;
	year += century * 100;
	if (year == 0 || month == 0 || day == 0 || day > day_tab[isleap(year)][month - 1])
		return false;
	*days = date2j(year, month, day) - POSTGRES_EPOCH_JDATE;
	return true;
}

/* From the zone's first byte to the end of the text: microseconds east. */
static bool
zone_offset(const char *text, const char *end, int64 *east)
{
	int			hours;
	int			minutes = 0;

	if (end - text == 1 && *text == 'Z')
	{
		*east = 0;
		return true;
	}
	if ((end - text != 3 && end - text != 6) || (*text != '+' && *text != '-') ||
		!two_digits(text + 1, 14, &hours))
		return false;
	if (end - text == 6 && (text[3] != ':' || !two_digits(text + 4, 59, &minutes)))
		return false;
	*east = hours * USECS_PER_HOUR + minutes * USECS_PER_MINUTE;
	if (*text == '-')
		*east = -*east;
	return true;
}

bool
FastTimestamp(const char *text, int32 len, bool with_zone, Timestamp *value)
{
	const char *end = text + len;
	int			days;
	int			hour;
	int			minute;
	int			second;
	int			fraction = 0;
	int64		east = 0;

	if (len < 19 || !ten_bytes_date(text, &days) || (text[10] != 'T' && text[10] != ' ') ||
		!two_digits(text + 11, 23, &hour) ||
		text[13] != ':' || !two_digits(text + 14, 59, &minute) ||
		text[16] != ':' || !two_digits(text + 17, 59, &second))
		return false;
	text += 19;
	if (text < end && *text == '.')
	{
		int			unit = 1000000;
		int			d;

		for (text++; text < end && digit(*text, &d); text++)
		{
			unit /= 10;
			if (unit == 0)
				return false;	/* more digits than are kept: rounding is not done here */
			fraction += d * unit;
		}
		if (unit == 1000000)
			return false;
	}
	if (text == end ? with_zone : !zone_offset(text, end, &east))
		return false;
	*value = days * USECS_PER_DAY + hour * USECS_PER_HOUR + minute * USECS_PER_MINUTE +
		second * USECS_PER_SEC + fraction - (with_zone ? east : 0);
	return true;
}

bool
FastDate(const char *text, int32 len, DateADT *value)
{
	int			days;

	if (len != 10 || !ten_bytes_date(text, &days))
		return false;
	*value = days;
	return true;
}

/* ---- uuid ---- */

static inline int
hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool
FastUuid(const char *text, int32 len, pg_uuid_t *value)
{
	if (len != 36)
		return false;
	for (int i = 0; i < UUID_LEN; i++)
	{
		int			high;
		int			low;

		if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
			return false;
		high = hex(*text++);
		low = hex(*text++);
		if (high < 0 || low < 0)
			return false;
		value->data[i] = (unsigned char) (high << 4 | low);
	}
	return true;
}

/* ---- base64 ---- */

/* The six bits of a character; -1: padding; -2: white space; -3: none of base64. */
static inline int
six_bits(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	switch (c)
	{
		case '+':
		case '-':
			return 62;
		case '/':
		case '_':
			return 63;
		case '=':
			return -1;
		case ' ':
		case '\t':
		case '\n':
		case '\r':
			return -2;
		default:
			return -3;
	}
}

bool
FastBase64(const char *text, int32 len, Datum *value)
{
	bytea	   *result = palloc(VARHDRSZ + (Size) len / 4 * 3 + 3);
	char	   *out = VARDATA(result);
	uint32		bits = 0;
	int			digits = 0;
	int			padding = 0;

	for (int32 i = 0; i < len; i++)
	{
		int			six = six_bits(text[i]);

		if (six == -2)
			continue;
		if (six == -1)
		{
			padding++;
			continue;
		}
		if (six < 0 || padding > 0)
			return false;
		bits = bits << 6 | six;
		if (++digits % 4 == 0)
		{
			*out++ = (char) (bits >> 16);
			*out++ = (char) (bits >> 8);
			*out++ = (char) bits;
		}
	}
	/* A last group of two or three digits is one byte or two; padding fills it up, or is left out. */
	if (digits % 4 == 1 || (padding > 0 && (digits % 4 == 0 || padding != 4 - digits % 4)))
		return false;
	if (digits % 4 == 2)
		*out++ = (char) (bits >> 4);
	else if (digits % 4 == 3)
	{
		*out++ = (char) (bits >> 10);
		*out++ = (char) (bits >> 2);
	}
	SET_VARSIZE(result, out - (char *) result);
	*value = PointerGetDatum(result);
	return true;
}
