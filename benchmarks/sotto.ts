export const ours: import('./contenders.ts').Contender[] = []
export const idleSotto: import('./idle.ts').IdleRelay[] = []
