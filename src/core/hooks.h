/*
 * hooks.h
 *		Where PostgreSQL tells us that something changes.
 */
#ifndef HYBRIDIOT_HOOKS_H
#define HYBRIDIOT_HOOKS_H

extern void HooksInstall(void);

#endif							/* HYBRIDIOT_HOOKS_H */
